"""What a run looks like: its page, the browser of its completions, and the views that follow it while it goes on."""
