"""Which tokens a sequence model retains, as numbers, figures and a page."""
