import './form.css';
import './index.css';
