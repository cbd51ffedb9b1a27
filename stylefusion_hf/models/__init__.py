"""The networks, as diffusers models: generators, discriminators, fusion nets, segmenters and the image encoder.

Read `style_generator.py` first: the interface z -> w -> s -> picture through which the rest of the package uses a
generator. `layers.py` and `stylegan2.py` implement it for StyleGAN2, `mobile_layers.py`, `mobile_synthesis.py` and
`mobile_stylegan.py` for MobileStyleGAN, `stylegan3_plan.py`, `stylegan3_layers.py`, `stylegan3_synthesis.py` and
`stylegan3.py` for StyleGAN3; `latents.py` turns seeds, pictures and codes of any space into style codes.
`fusion/` holds the fusion nets of the paper, `discriminator.py` and `encoder.py` the networks around the generator.
`segmenter.py` and `labeller.py` are our region segmenters, `hub_segmenter.py` and `transformers_networks.py` wrap
those of the transformers library.
`config_checks.py` and `loading.py` guard every model against malformed configs and incomplete checkpoints.
"""
