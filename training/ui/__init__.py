"""The web page of `train.py --ui`: start and stop runs, watch them, look at results."""
