"""Rewrite rules as data, by subject; the passes of `tcomp.transform` choose among them."""
