"""Exports of a discovery to the tools of others: Muon, quantization, and the merging of models."""
