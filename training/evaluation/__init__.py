"""The classifier: says what a finished mesh shows, and so how often text-to-3D got what it was asked for.

It shares with the embedded prior only the categories and the renderer: its network is another one, and it was
trained on other random objects.
"""
