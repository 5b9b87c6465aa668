"""fastMRI volumes, undersampling, and the Fourier and coil operators."""
