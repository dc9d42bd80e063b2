"""The Data tab: training data, calibration data, and the text that quality is measured on."""
