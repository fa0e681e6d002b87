"""Where items come from: each source is streamed, and can be taken up at a place that it named before."""
