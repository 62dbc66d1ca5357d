"""SFT and DPO of the student, in a subprocess of its own."""
