"""One page that shows a comparison."""
def render(report):
    raise NotImplementedError
