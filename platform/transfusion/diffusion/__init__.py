"""Mathematics of diffusion over tensors: schedules, solvers, guidance."""
