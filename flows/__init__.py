"""When and where the stages run. No maths, no threshold, no metric."""
