"""Random region trees and model configs: they are built, run and saved and loaded again, or refused in one line."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from stylefusion_hf import (
    FusionHierarchy,
    ImageEncoder,
    RegionSegmenter,
    RegionTree,
    StyleFusionPipeline,
    StyleGAN2Discriminator,
    StyleGAN2Generator,
)
from stylefusion_hf.core.region_tree import MAX_DEPTH
from tests.refusals import Refusal, attempt, examples
from tests.tiny import draw, tiny_fusion, tiny_generator

# Legal names that are attributes of modules, keywords, other scripts and other oddities.
NAMES = [
    "half", "train", "eval", "forward", "parameters", "training", "self", "class", "None", "net_", "nets", "items",
    "pop",
    "__init__", "weight", "haïr", "Haar 2", "目", "0", "-1", "a/b", "a:b", "'", '"', "{}", "all", "x" * 100, "tree",
    "keys",
    "state_dict", "device",
]  # fmt: skip
ILLEGAL = ["", " ", "a.b", "a,b", "(", "a*", "a=b", " a", "a\n", "a\nb", "x" * 101, None, 3, True, ("a",), b"a"]


@st.composite
def trees(draw_: Any, most: int = 20) -> RegionTree:
    """2 to `most` leaves in any shape, some inner nodes fused, under odd names."""
    leaves = draw_(st.integers(2, most))
    count = 2 * leaves - 1
    names = iter(draw_(st.permutations(NAMES + [f"n{i}" for i in range(count)]))[:count])
    root = next(names)
    branches: dict[str, tuple[str, str]] = {}
    ends = [root]
    while len(ends) < leaves:
        at = draw_(st.integers(0, len(ends) - 1))  # always the last: as deep as it has leaves
        node = ends.pop(at)
        branches[node] = (next(names), next(names))
        ends += branches[node]
    fused = tuple(name for name in branches if name == root or draw_(st.booleans()))
    return RegionTree(root, branches, fused)


@given(trees(), st.data())
@examples(60)
def test_trees_survive_every_way_in_and_out(tree, data):
    assert attempt("trees", lambda: RegionTree.parse(str(tree))) == tree
    assert RegionTree.from_json(tree.to_json()) == tree
    assert RegionTree.from_dict(tree.to_dict()) == tree
    codes = tree.assign(0, {data.draw(st.sampled_from(tree.nodes)): 1})
    assert set(codes) == set(tree.nodes) and len(tree.leaves) == len(tree.inner) + 1


@given(trees(most=7), st.integers(0, 99))
@examples(12)
def test_a_pipeline_of_any_tree(tmp_path_factory, tree, seed):
    generator = tiny_generator()
    pipe = StyleFusionPipeline(generator, tiny_fusion(generator, tree))
    folder = tmp_path_factory.mktemp("tree")
    pipe.save_pretrained(folder)
    loaded = attempt("trees in a pipeline", lambda: StyleFusionPipeline.from_pretrained(folder))
    call = {"base": seed, "regions": {tree.active[-1]: seed + 1}, "output_type": "pt"}
    assert torch.equal(loaded(**call).images, pipe(**call).images)


@st.composite
def spoilt_trees(draw_: Any) -> dict[str, Any]:
    """The dict of a tree with one mistake."""
    tree = draw_(trees(most=6))
    data = tree.to_dict()
    inner, node = draw_(st.sampled_from(tree.inner)), draw_(st.sampled_from(tree.nodes))
    how = draw_(st.sampled_from(["cycle", "one child", "three", "twice", "fused", "name", "child", "key", "kind"]))
    if how == "cycle":
        data["children"][inner][1] = tree.root
    elif how == "one child":
        data["children"][inner] = data["children"][inner][:1]
    elif how == "three":
        data["children"][inner].append("another")
    elif how == "twice":
        data["children"][inner][0] = data["children"][inner][1]
    elif how == "fused":
        data["fused"].append(draw_(st.sampled_from(["nobody", *tree.leaves])))
    elif how == "name":
        data["children"][inner][0] = draw_(st.sampled_from([name for name in ILLEGAL if name != ("a",)]))
    elif how == "child":
        data["children"]["nobody"] = ["a1", "b1"]
    elif how == "key":
        data.pop(draw_(st.sampled_from(sorted(data))))
    else:
        wrong = draw_(st.sampled_from([None, 3, "x", [], [[]], {"a": 1}, {node: None}, {node: 3}, {3: ["a", "b"]}]))
        data["children"] = wrong
    return data


@given(spoilt_trees())
@examples(200)
def test_spoilt_trees_are_refused(data):
    assert isinstance(attempt("spoilt trees", lambda: RegionTree.from_dict(data)), Refusal), data


@given(st.text("ab*(), \n.=é", max_size=30))
@examples(200)
def test_texts_of_trees(text):
    tree = attempt("texts of trees", lambda: RegionTree.of(text))
    if not isinstance(tree, Refusal):
        assert RegionTree.parse(str(tree)) == tree


def test_names_that_are_illegal():
    for name in ILLEGAL:
        for data in ((name, {}, ()), ("r", {"r": ("a", name)}, ())):
            assert isinstance(attempt("spoilt trees", lambda data=data: RegionTree(*data)), Refusal), repr(name)


def test_a_tree_as_deep_as_it_may_be():
    def chain(depth: int) -> str:
        text = "leaf"
        for k in range(depth):
            text = f"n{k}*({text}, l{k})"
        return text

    assert RegionTree.parse(chain(MAX_DEPTH)).depth == MAX_DEPTH
    assert "too deep" in str(attempt("spoilt trees", lambda: RegionTree.parse(chain(MAX_DEPTH + 1))))
    assert isinstance(attempt("spoilt trees", lambda: RegionTree.parse(chain(20_000))), Refusal)


# --- Models ----------------------------------------------------------------------------------------------------------

SIZES = st.sampled_from([0, 1, 2, 3, 4, 5, 8])
NUMBERS = st.sampled_from([None, -1, 0, 0.01, 0.7, 1, 256])
CONFIGS: dict[type, dict[str, Any]] = {
    StyleGAN2Generator: {
        "resolution": st.sampled_from([0, 3, 4, 8, 12, 16]), "channels": st.lists(SIZES, min_size=1, max_size=3),
        "z_dim": SIZES, "w_dim": SIZES, "label_dim": SIZES, "mapping_layers": SIZES, "mapping_width": SIZES,
        "img_channels": SIZES, "use_noise": st.booleans(), "conv_clamp": NUMBERS, "truncation_psi": NUMBERS,
    },
    StyleGAN2Discriminator: {
        "resolution": st.sampled_from([0, 4, 8, 12, 16]), "channels": st.lists(SIZES, min_size=2, max_size=3),
        "label_dim": SIZES, "mapping_layers": SIZES, "label_embed_dim": SIZES, "img_channels": SIZES,
        "mbstd_group_size": SIZES, "mbstd_channels": SIZES, "conv_clamp": NUMBERS,
    },
    RegionSegmenter: {
        "regions": st.lists(st.sampled_from(["a", "b", "c"]), max_size=3), "channels": st.lists(SIZES, max_size=3),
        "groups": SIZES, "img_channels": SIZES, "resolution": st.sampled_from([None, -1, 0, 1, 4, 9, 64, 2**20]),
    },
    ImageEncoder: {
        "num_ws": SIZES, "w_dim": SIZES, "resolution": st.sampled_from([1, 4, 6, 8, 16]),
        "channels": st.lists(SIZES, max_size=3), "reduced": SIZES, "features": SIZES, "groups": SIZES,
        "img_channels": SIZES,
    },
    FusionHierarchy: {
        "tree": st.sampled_from(["all*(a, b)", "all*(a*(b, c), d)", "church", "all(a, b)", "a"]),
        "conv_sizes": st.lists(SIZES, max_size=3), "rgb_sizes": st.lists(SIZES, max_size=3), "padded_width": SIZES,
        "hidden_width": SIZES, "hidden_layers": SIZES, "num_indicators": SIZES, "indicator_repeats": SIZES,
        "shared_indicators": st.booleans(), "common_conv_layers": SIZES, "common_rgb_layers": SIZES,
        "lr_multiplier": NUMBERS, "pooling": st.sampled_from(["max", "mean", "x"]),
        "final_activation": st.sampled_from(["lrelu", "linear"]), "gate_bias": st.booleans(),
        "gate_product": st.booleans(), "gate_novelty": st.booleans(), "standardise": st.booleans(),
        "input_rank": st.none() | SIZES, "output_rank": st.none() | SIZES, "context_width": st.none() | SIZES,
    },
}  # fmt: skip
SOUND: dict[type, dict[str, Any]] = {
    StyleGAN2Generator: {"resolution": 8, "channels": [4, 4], "z_dim": 4, "w_dim": 4, "mapping_layers": 2},
    StyleGAN2Discriminator: {"resolution": 8, "channels": [4, 4]},
    RegionSegmenter: {"regions": ["a", "b"], "channels": [4, 4], "groups": 2},
    ImageEncoder: {
        "num_ws": 3, "w_dim": 4, "resolution": 8, "channels": [4, 4], "groups": 2, "reduced": 2, "features": 4,
    },
    FusionHierarchy: {
        "tree": "all*(a, b)", "conv_sizes": [4, 3], "rgb_sizes": [2], "padded_width": 4, "hidden_width": 4,
        "num_indicators": 8,
    },
}  # fmt: skip


@pytest.mark.parametrize("cls", CONFIGS)
@given(st.data())
@examples(40)
def test_random_configs(tmp_path_factory, cls, data):
    changed = data.draw(st.lists(st.sampled_from(sorted(CONFIGS[cls])), max_size=3, unique=True))
    config = SOUND[cls] | {name: data.draw(CONFIGS[cls][name]) for name in changed}
    model = attempt("configs", lambda: cls(**config))
    if isinstance(model, Refusal):
        return
    out = run(model.eval())
    assert out.isfinite().all(), config
    folder = tmp_path_factory.getbasetemp() / cls.__name__
    model.save_pretrained(folder)
    assert torch.equal(run(attempt("configs", lambda: cls.from_pretrained(folder))), out), config


@torch.no_grad()
def run(model: Any) -> torch.Tensor:
    config = model.config
    if isinstance(model, StyleGAN2Generator):
        labels = torch.eye(config.label_dim)[:1] if config.label_dim else None
        return model(draw(1, config.z_dim), class_labels=labels).sample
    if isinstance(model, FusionHierarchy):
        return model.fuse({node: draw(2, model.style_width, seed=i) for i, node in enumerate(model.tree.nodes)})
    size = 9 if isinstance(model, RegionSegmenter) else config.get("resolution", 9)
    images = draw(3, config.img_channels, size, size)
    if isinstance(model, StyleGAN2Discriminator):
        return model(images, torch.eye(config.label_dim)[:1].expand(3, -1) if config.label_dim else None).logits
    return model.segment(images) if isinstance(model, RegionSegmenter) else model.encode(images)
