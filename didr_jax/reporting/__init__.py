"""What a run shows of itself, drawn from what its workdir holds: curves, pairs of pictures, a verdict, `report.html`."""
