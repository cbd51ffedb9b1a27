"""Training: one module a job, each started with `accelerate launch -m stylefusion_hf.training.<job>`."""
