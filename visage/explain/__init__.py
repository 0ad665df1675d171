"""What a model looks at: score maps, occlusion, and their pages."""
