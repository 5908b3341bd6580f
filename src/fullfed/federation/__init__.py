"""What a federation is: a base model plus a log of small updates. No method, no transport."""
