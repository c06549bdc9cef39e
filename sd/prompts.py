"""Prompts: the text in its view-dependent forms (Fantasia3D, arXiv 2303.13873, section 4; DreamFusion)."""

VIEW_SUFFIXES = (", front view", ", side view", ", back view")


def directional_prompts(text: str, directional: bool) -> list[str]:
    """Three prompts in the order of `Cameras.view_index`: front, side, back; equal if not directional."""
    return [text + suffix if directional else text for suffix in VIEW_SUFFIXES]
