"""Who drives whom: training, evaluation, and the files, mirrors and displays around them."""
