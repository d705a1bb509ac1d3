"""The recipe of `nano-flux`: a world of drawn pictures, and a miniature FLUX.1 that draws it."""
