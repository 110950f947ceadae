"""From a build request to an engine directory: plan, graphs, weights, engines, and one step that puts them in place."""
