"""Show-o: one language model over text, image codes and a mask, with a tokenizer of images and CLIP to read them.

What upstream does unexpectedly, and what becomes of it here:

| upstream | here |
|---|---|
| one id starts and ends a text | kept: `ShowoTokenizer.end_id` |
| pads on the left take up positions | kept as an offset of positions; the pads themselves are left out |
| the t2i loss counts the tokens around the codes | `ShowoConfig.boundary_targets`, off: RecA's loss has none |
| guidance g weighs 1 + g and -g | kept: `cfg_scale` is 1 + g |
| the temperature of hiding is multiplied on in every iteration | kept |
| the last iteration hides one cell again | kept in `Step.hidden_again`; the image holds every code |
| weight decay spares biases alone | kept |
| a latent of exactly zero is bit 0 | kept |
| pixels are cut, not rounded | kept |
| questions about codes carry `USER: \n` and a start token, training dialogues neither | kept |
| masks are filled with the least int64 as a float | bool masks, the same softmax; float16 would overflow |
| offsets are found by searching for ids, or taken from the first sample | known by construction |
| the mmu loss of no sample is that of the whole batch, the lm loss NaN | tasks never share a loss |
| `label_smoothing` is ignored | no such field |
| `gradient_checkpointing` is read by nothing | `Recipe.checkpointing` is |
| restarts lose optimizer and schedule | `segros_train.training.checkpoint` keeps both |
| weights are looked for as `pytorch_model.safetensors`, saved as `.bin` | both, and Hugging Face's names |

This package imports no torch until a model is built. Source: showlab/Show-o @ 45a5a2de
"""
