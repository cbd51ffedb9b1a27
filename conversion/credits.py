"""Who made what a conversion started from, and what its pictures are not good for: sections of the model card."""

from __future__ import annotations

STYLEGAN2 = "StyleGAN2 (Karras et al., NVIDIA, arXiv 1912.04958)"
TRAINER = "Credit whoever trained the network and took its training pictures, too."

CREDITS = {
    "nvidia": (
        f"The generator's design: {STYLEGAN2}, with StyleGAN2-ADA (arXiv 2006.06676) and StyleGAN3 (arXiv 2106.12423)"
        f" by the same authors. {TRAINER}"
    ),
    "tensorflow": f"The generator's design: {STYLEGAN2}. {TRAINER}",
    "rosinality": (f"The layout: Kim Seonghyeon's stylegan2-pytorch. The generator's design: {STYLEGAN2}. {TRAINER}"),
    "e4e": (
        "The encoders: pixel2style2pixel (Richardson et al., arXiv 2008.00951) and encoder4editing (Tov et al., arXiv"
        f" 2102.02766). The generator's design: {STYLEGAN2}. {TRAINER}"
    ),
    "mobilestylegan": (
        "The generator: MobileStyleGAN (Sergei Belousov, arXiv 2104.04767). Its published network of faces was"
        f" distilled from {STYLEGAN2}, which learned from FFHQ, 70,000 photographs that their owners put on Flickr."
    ),
    "stylefusion": (
        "The fusion nets: StyleFusion (Kafri, Patashnik, Alaluf and Cohen-Or, arXiv 2107.07437). The generator:"
        f" {STYLEGAN2}. {TRAINER}"
    ),
    "directions": "Credit whoever found the directions.",
}
PICTURES = (
    "The network draws what its training pictures show, with their gaps and biases: what is rare there comes out badly"
    " or not at all. The people in these pictures do not exist, but some may look like real people: do not use"
    " pictures to deceive, or as evidence of anything."
)
LIMITS = dict.fromkeys(CREDITS, PICTURES) | {
    "directions": "A direction works with its own generator only, and may change more than its name says."
}
