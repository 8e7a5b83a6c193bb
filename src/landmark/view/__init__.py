"""What a model read for each token that it generated: gathered once, shown as a page, a figure or lines of JSON."""

FIGURES = (".png", ".svg", ".pdf")  # endings of the names of figures
