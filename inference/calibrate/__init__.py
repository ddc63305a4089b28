"""Whether a guide is calibrated over data sets that the model makes."""
