"""The package inside other people's: each module needs an extra of its own, and nothing here imports them."""
