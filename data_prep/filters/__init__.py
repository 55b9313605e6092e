"""What is measured on a clip, and from which value on it is left out; imports problems and components."""
