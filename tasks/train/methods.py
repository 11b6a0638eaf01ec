"""The five rows of the paper's Table 1 and Table 6."""

from dataclasses import replace

from segros_train.method import TrainTask
from segros_train.methods.reca import Reca
from segros_train.methods.segros import SeGroS
from segros_train.methods.sft import SFT

ours = SeGroS()

none = TrainTask(name="none", title="w/o SFT", method=None, paper="Table 1")
sft = TrainTask(name="sft", title="SFT", method=SFT(), paper="Table 1")
reca = TrainTask(name="reca", title="Reca", method=Reca(), paper="Table 1")
segros = TrainTask(name="segros", title="Ours", method=ours, attention="paper", paper="Table 1")
drop_loss = replace(
    segros, name="drop-loss", title="Ours (drop-loss)", method=replace(ours, drop_loss=True), paper="Table 6"
)
