"""Evaluation of finished runs with a classifier: does a mesh show what its prompt names?

The classifier shares the categories and the renderer with the embedded prior. Its network is different and
was trained on other random objects.
"""
