"""mPLUG, the answerer that DPG-Bench means."""
