"""Entry point for `DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipelines/pipeline.py",
trust_remote_code=True)`.

diffusers copies this file and uses the only pipeline class it finds in it. The package must be installed.
"""

from stylefusion_hf import StyleFusionPipeline

__all__ = ["StyleFusionPipeline"]
