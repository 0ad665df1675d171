"""What the validate stage looks for: measures of every photo (`measures`), the rules that bound
them (`rules`)."""
