"""Small fusion nets with random weights."""

import torch

from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy

SMALL = {"conv_sizes": [8, 8, 8, 4, 2], "rgb_sizes": [8, 4, 2], "padded_width": 8, "hidden_width": 24}
SMALL |= {
    "num_indicators": 8,
    "indicator_repeats": 2,
    "common_conv_layers": 3,
    "common_rgb_layers": 2,
    "lr_multiplier": 1.0,
}


def small(tree="all*(face*(mouth, skin), hair)", seed=0, **changes):
    torch.manual_seed(seed)
    fusion = FusionHierarchy(tree, **(SMALL | changes))
    for parameter in fusion.parameters():  # biases, logits and zeroed layers too
        torch.nn.init.normal_(parameter, std=1.5)
    return fusion.eval()


def draw_codes(fusion, batch=2, seed=1, names=None):
    random = torch.Generator().manual_seed(seed)
    return {n: torch.randn(batch, fusion.style_width, generator=random) for n in names or fusion.tree.nodes}
