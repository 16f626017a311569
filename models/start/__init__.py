"""Where a training starts: from texts, from a softmax model, from somebody's checkpoint."""
