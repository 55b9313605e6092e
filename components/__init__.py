"""What is learned, and how: torch, diffusers and peft, never Ray or Prefect; imports infra."""
