"""Tiny networks of transformers with random weights, as a Hub repository would hold them."""

import json
from pathlib import Path
from typing import Any

import torch

FACE = [
    "background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear", "mouth", "u_lip",
    "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth",
]  # fmt: skip
AVATAR = {  # the avatar tree's leaves, of face classes
    "regions": {
        "background": ["background"],
        "clothes": ["cloth", "neck_l"],
        "skin": ["skin", "nose", "neck"],
        "mouth": ["mouth", "u_lip", "l_lip"],
        "eyes": ["l_eye", "r_eye"],
        "hair": ["hair", "hat"],
    },
    "rest": "skin",
}
STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
VIT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 8}


def configs(labels: list[str]) -> dict[str, dict[str, Any]]:
    """Kind -> config."""
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    swin = {"model_type": "swin", "embed_dim": 8, "num_heads": [1, 1, 2, 2], "depths": [1] * 4, "window_size": 4}
    convnext = {"model_type": "convnext", "hidden_sizes": [8] * 4, "depths": [1] * 4}
    small = {"hidden_size": 8, "auxiliary_channels": 8}
    masks = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_queries": 5, "num_attention_heads": 2}
    masks |= {"encoder_feedforward_dim": 8, "dim_feedforward": 8, "encoder_layers": 1, "decoder_layers": 2}
    found = {
        "segformer": {
            "hidden_sizes": [8, 8, 16, 16],
            "depths": [1] * 4,
            "num_attention_heads": [1, 1, 2, 2],
            "decoder_hidden_size": 8,
        },
        "beit": VIT | {"image_size": 32, "out_indices": [1, 2, 3, 4], "use_relative_position_bias": True},
        "dpt": VIT | {"image_size": 32, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8] * 4},
        "mobilevit": {"image_size": 64, "hidden_sizes": [8] * 3, "neck_hidden_sizes": [8] * 7, "aspp_out_channels": 8},
        "mobilenet_v2": {"image_size": 64, "depth_multiplier": 0.25},
        "upernet": small | {"backbone_config": convnext | STAGES},
        "upernet, swin": small | {"backbone_config": swin | STAGES},
        "mask2former": masks | {"backbone_config": swin | STAGES},
        "eomt": VIT | {"image_size": 32, "mlp_ratio": 2, "num_hidden_layers": 3, "num_blocks": 1, "num_queries": 5},
    }
    found["beit"]["auxiliary_channels"] = found["dpt"]["fusion_hidden_size"] = 8
    for kind, config in found.items():
        config |= names | {"model_type": kind.split(",")[0]}
    return found


def save_network(folder: Path, kind: str = "segformer", labels: list[str] = FACE, **prepared: Any) -> Path:
    """A network as transformers saves it; with `prepared` its preprocessor_config.json."""
    import transformers

    config = dict(configs(labels)[kind])
    made = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    torch.manual_seed(0)
    semantic = transformers.AutoModelForSemanticSegmentation
    auto = semantic if type(made) in semantic._model_mapping else transformers.AutoModelForUniversalSegmentation
    network = auto.from_config(made)
    for parameter in network.parameters():  # so that the classes differ from place to place
        torch.nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(folder)
    if prepared:
        (folder / "preprocessor_config.json").write_text(json.dumps(prepared))
    return folder


# The 150 classes of ADE20K (Zhou et al., CVPR 2017), as the Hub's models name them.
ADE = (  # noqa: SIM905
    "wall,building,sky,floor,tree,ceiling,road,bed ,windowpane,grass,cabinet,sidewalk,person,earth,door,table,"
    "mountain,plant,curtain,chair,car,water,painting,sofa,shelf,house,sea,mirror,rug,field,armchair,seat,fence,desk,rock,"
    "wardrobe,lamp,bathtub,railing,cushion,base,box,column,signboard,chest of drawers,counter,sand,sink,skyscraper,"
    "fireplace,refrigerator,grandstand,path,stairs,runway,case,pool table,pillow,screen door,stairway,river,bridge,"
    "bookcase,blind,coffee table,toilet,flower,book,hill,bench,countertop,stove,palm,kitchen island,computer,"
    "swivel chair,boat,bar,arcade machine,hovel,bus,towel,light,truck,tower,chandelier,awning,streetlight,booth,"
    "television receiver,airplane,dirt track,apparel,pole,land,bannister,escalator,ottoman,bottle,buffet,poster,stage,"
    "van,ship,fountain,conveyer belt,canopy,washer,plaything,swimming pool,stool,barrel,basket,waterfall,tent,bag,"
    "minibike,cradle,oven,ball,food,step,tank,trade name,microwave,pot,animal,bicycle,lake,dishwasher,screen,blanket,"
    "sculpture,hood,sconce,vase,traffic light,tray,ashcan,fan,pier,crt screen,plate,monitor,bulletin board,shower,"
    "radiator,glass,clock,flag"
).split(",")
