"""How right and how well calibrated decisions are, by labels, order of options and prior."""
