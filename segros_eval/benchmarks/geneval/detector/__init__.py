"""The detector of photographs: Mask2Former for objects, CLIP for their colours."""
