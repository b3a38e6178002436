"""Parts that tabs are drawn with: the settings form, HTML of a run, handlers and templates."""
