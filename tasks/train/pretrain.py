"""How the tiny backbones came to be: random weights, the backbone's own losses, the embedded world.

On 2 CPU cores: about 25 minutes for the autoencoder, an hour for the rest.
"""

from segros_train.methods.sft import SFT
from segros_train.types import TrainTask

pretrain = TrainTask(
    name="pretrain",
    title="Pretraining",
    method=SFT(all_hidden_share=0.35),
    recipe="harmon-tiny-pretrain",
    from_scratch=True,
)
