"""Config values that make a run small enough for a test."""

TINY = {
    "text": "a car",
    "batch": 2,
    "train_res": [24, 24],
    "preview_res": [16, 16],
    "texture_res": [64, 64],
    "hash_n_levels": 3,
    "hash_log2_hashmap_size": 10,
    "hash_max_resolution": 32,
    "env_resolution": 64,
    "guidance_weight": 1,
    "video_interval": 1,
    "save_interval": 2,
    "validate": False,
    "device": "cpu",
}
