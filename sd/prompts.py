"""Prompts: the text, its view-dependent forms and the negative prompt (METHOD sections 1 and 5)."""

VIEW_SUFFIXES = (", front view", ", side view", ", back view")

DEFAULT_NEGATIVE = {
    "geometry_modeling": "low quality",
    "appearance_modeling": "shadow, oversaturated, low quality, unrealistic",
}


def directional_prompts(text: str, directional: bool) -> list[str]:
    """Three prompts in the order of `Cameras.view_index`: front, side, back; all alike if not directional."""
    return [text + suffix if directional else text for suffix in VIEW_SUFFIXES]


def negative_prompt(negative_text: str, mode: str) -> str:
    """The config's negative text or, where it is empty, the mode's default."""
    return negative_text or DEFAULT_NEGATIVE[mode]
