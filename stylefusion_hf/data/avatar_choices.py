"""The parts and colors that avatars are composed of, with the parts' relative frequencies.

Every part was inspected at 64 and 256 px. Excluded are vomit, crossed and heart eyes; parts whose strokes blur at
64 px (eating, serious, cry, wick_beard, curvy, dreads, einstein_hair, shirt graphics and texts); parts that hide an
eye or most of the face (curly_2, long_hair_curly, half_shaved, jedi, gladiator_helmet, eyepatch, astronout); parts
that break off at the picture's edge or have a fixed color (bride, wick, loose_hair, hair/hat, big_hair,
twist_long_hair_2, jedi_robe); and parts whose region would be too small (no_hair, overall, gladiator).
"""

# --- Parts: name -> relative frequency -------------------------------------------------------------------------------
HAIR = {
    "hair/bob": 1.0,
    "hair/braids": 0.8,
    "hair/bun": 0.8,
    "hair/buzzcut": 0.8,
    "hair/caesar": 0.8,
    "hair/caesar_side_part": 0.8,
    "hair/cornrows": 0.7,
    "hair/curly": 1.2,
    "hair/dreadlocks": 0.7,
    "hair/elvis": 0.8,
    "hair/evil_spike": 0.8,
    "hair/frida": 0.7,
    "hair/frizzle": 0.6,
    "hair/fro": 1.2,
    "hair/fro_band": 1.0,
    "hair/long_not_too_long": 1.2,
    "hair/mia_wallace": 1.2,
    "hair/mohawk": 0.3,
    "hair/mowgli": 1.0,
    "hair/pixie": 0.9,
    "hair/pompadour": 0.8,
    "hair/quiff": 0.9,
    "hair/shaggy": 1.0,
    "hair/shaggy_mullet": 1.0,
    "hair/shaved_sides": 0.8,
    "hair/short_curly": 0.9,
    "hair/short_dreads_1": 0.8,
    "hair/short_dreads_2": 0.8,
    "hair/short_flat": 0.9,
    "hair/short_round": 0.9,
    "hair/short_waved": 0.9,
    "hair/sides": 0.3,
    "hair/straight_1": 1.2,
    "hair/straight_2": 1.2,
    "hair/straight_strand": 1.2,
    "hair/twist_long_hair": 0.7,
    "hair/wild": 1.0,
}
HATS = {
    "hat/chef_cap": 0.7,
    "hat/hat": 1.0,
    "hat/hijab": 1.0,
    "hat/turban": 1.0,
    "hat/winter_hat_1": 1.0,
    "hat/winter_hat_2": 1.0,
    "hat/winter_hat_3": 1.0,
    "hat/winter_hat_4": 0.8,
}
EYES = {
    "closed": 0.5,
    "default": 1.5,
    "eye_roll": 0.5,
    "happy": 0.8,
    "side": 1.0,
    "squint": 1.0,
    "surprised": 1.2,
    "wink": 0.6,
    "wink_wacky": 0.6,
}
EYEBROWS = {
    "angry": 0.7,
    "angry_natural": 0.8,
    "default": 1.0,
    "default_natural": 1.2,
    "flat_natural": 1.0,
    "frown_natural": 0.7,
    "raised_excited": 0.9,
    "raised_excited_natural": 1.0,
    "sad_concerned": 0.6,
    "sad_concerned_natural": 0.7,
    "unibrow_natural": 0.4,
    "up_down": 0.7,
    "up_down_natural": 0.8,
}
GLASSES = {
    "prescription_01": 1.0,
    "prescription_02": 1.0,
    "round": 1.2,
    "kurt": 0.1,
    "sunglasses": 0.15,
    "wayfarers": 0.15,
}
NOSES = {"default": 1.0, "small": 1.0, "wide": 1.0}
MOUTHS = {
    "big_smile": 1.2,
    "concerned": 0.9,
    "default": 1.0,
    "disbelief": 0.9,
    "grimace": 0.9,
    "sad": 0.4,
    "scream_open": 0.9,
    "smile": 1.5,
    "tongue": 1.0,
    "twinkle": 0.4,
}
FACIAL_HAIR = {
    "beard_light": 1.2,
    "beard_magestic": 1.0,
    "beard_medium": 1.2,
    "einstien_mustache": 0.7,
    "moustache_fancy": 0.7,
    "moustache_magnum": 0.7,
}
CLOTHES = {
    "astronaut_suit": 0.5,
    "blazer_shirt": 1.0,
    "blazer_sweater": 1.0,
    "bond_suit": 0.6,
    "chef": 0.7,
    "collar_sweater": 1.0,
    "hoodie": 1.2,
    "shirt_crew_neck": 1.2,
    "shirt_scoop_neck": 1.0,
    "shirt_v_neck": 1.0,
    "shirt_wick": 0.6,
}
HAT_SHARE, GLASSES_SHARE, FACIAL_HAIR_SHARE = 0.15, 0.25, 0.25

# --- Colors ----------------------------------------------------------------------------------------------------------
# python-avatars' skin colors except orange and yellow, and steps between them
SKIN_COLORS = ("#ffdbb4", "#f3c9a5", "#edb98a", "#e0a376", "#d08b5b", "#b97445", "#ae5d29", "#955838", "#7d5440")
NATURAL_HAIR = (
    "#2c1b18", "#4a312c", "#724133", "#a55728", "#b58143", "#d6b370", "#ecdcbf", "#c93305", "#e8e1e1", "#8a8a8f",
)  # fmt: skip
FANCY_HAIR = ("#f59797", "#e0529c", "#7a4fd0", "#3d6fe0", "#2fb5b0", "#46a85a", "#b52a4a", "#f0b429")
CLOTHING_COLORS = (
    "#262e33", "#3c4f5c", "#25557c", "#5199e4", "#65c9ff", "#b1e2ff", "#a7ffc4", "#3f9c6b", "#2f6b4f", "#ffdeb5",
    "#ffffb1", "#f2c230", "#f08a3c", "#ff5c5c", "#c2333f", "#ff488e", "#9b59b6", "#5b3a8e", "#e6e6e6",
    "#ffffff", "#929598",
)  # fmt: skip
TRIM_COLORS = ("#ffffff", "#f4f4f4", "#e6e6e6", *CLOTHING_COLORS)
EYE_COLORS = ("#17151a", "#2b1812", "#3f2413", "#1f3d7d", "#1b6a94", "#1f5a38", "#3b4550")
MOUTH_COLORS = ("#2f141a", "#421722", "#5c1a28", "#381826", "#241014")
TONGUE_COLORS = ("#ff4f6d", "#f0697c", "#d9455f", "#ff7d8c")
GLASSES_COLORS = ("#252c2f", "#1b1b1f", "#5a3621", "#8c2f39", "#274b7a", "#2c6e57", "#6b4a8a", "#d8a22e")
BACKGROUND_COLORS = (
    "#e3f2fd", "#bde0fe", "#8ecae6", "#5fa8d3", "#3d7ea6", "#274c77", "#d8f3dc", "#95d5b2", "#52b788", "#2d6a4f",
    "#fff3b0", "#ffd166", "#f4a261", "#e76f51", "#ffd6e0", "#ffafcc", "#d6a2e8", "#a06cd5", "#5e548e", "#edede9",
    "#ced4da", "#6c757d",
)  # fmt: skip
