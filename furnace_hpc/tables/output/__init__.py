"""Write tables, the report, figures and captions."""
