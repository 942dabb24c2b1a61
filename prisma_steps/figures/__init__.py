"""One file a figure: labelled data in, a drawing and its numbers out. Figures select and average, no more."""
