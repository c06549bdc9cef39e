"""The web page of `train.py --ui`: start runs, stop runs, follow their progress and view results."""
