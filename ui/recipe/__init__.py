"""The Recipe tab, and the sidebar that shows the recipe as it stands."""
