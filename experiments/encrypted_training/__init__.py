"""`hesim encrypted-finetune`: fine-tuning on encrypted sentences and labels, rehearsed and run."""
