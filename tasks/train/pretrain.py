"""How the tiny backbones came to be: random weights, the backbone's own losses, the embedded world.

The recipe is `<backbone>-pretrain`. What is known of its time, and how the shipped weights were made, stands in
docs/harmon-tiny.md and docs/show-o-tiny.md.
"""

from segros_train.method import TrainTask
from segros_train.methods.sft import SFT

pretrain = TrainTask(
    name="pretrain",
    title="Pretraining",
    method=SFT(all_hidden_share=0.35),
    from_scratch=True,
)
