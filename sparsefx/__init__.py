"""sparsefx: a compiler for BERT-class encoders."""
