"""SeGroS: training methods and backbones."""
