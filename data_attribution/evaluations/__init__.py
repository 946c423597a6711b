"""How good evidence is: against retraining, against what was planted, against chance."""
